"""scan + labels -> a picture or a movie of them, for people to look at."""
