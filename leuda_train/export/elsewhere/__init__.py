"""a model that leuda did not train -> its card, and an export of it."""
