"""ml_collections configs: configs/VERB/NAME.py, each with get_config()."""
