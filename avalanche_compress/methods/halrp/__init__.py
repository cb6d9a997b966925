"""Every task is a small perturbation of one frozen base: HALRP."""
