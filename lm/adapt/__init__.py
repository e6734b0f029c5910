"""What is done to a trained model's weights: low-rank adapters and their PEFT form, quantisation."""
