"""A family of models small enough to ship: its data, tokenizer, training and judge."""
