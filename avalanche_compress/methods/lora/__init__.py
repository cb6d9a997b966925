"""Every task adds a product of two small matrices to each weight of one frozen base: LoRA."""
