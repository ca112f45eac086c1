"""What was typed becomes objects: flags, parser, limits, defaults; what fit.py prints."""
