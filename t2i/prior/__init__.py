"""The autoregressive prior, a transformer over the codes of a tokenizer, conditioned on text."""
