"""models that leuda did not train -> their cards and exports; and an export as MONAI reads it."""
