"""Images and audio in data: decode them safely, prepare them for the towers of a model, find them in messages.

images.py and audio.py decode a file under limits, tiles.py and spectrograms.py prepare the result. parts.py reads the content
parts of messages, places.py says where media stand in a template, prompts.py writes their tokens. data/chat/media joins these.
"""
