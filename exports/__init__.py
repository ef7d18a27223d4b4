"""Model files. Only the small phantom model is kept in the repository; it ships in the wheel."""
