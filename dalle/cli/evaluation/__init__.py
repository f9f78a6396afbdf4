"""Commands that judge models and data."""
