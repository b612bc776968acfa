"""How the demo models are made. Not part of the installed package."""
