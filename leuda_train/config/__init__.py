"""TOML -> a frozen, validated config. Imports no other folder of this package."""
