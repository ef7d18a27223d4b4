"""model file -> something that scores windows. May import model and what stands below."""
