"""From files to weights. `open_checkpoint` tells the kinds apart; each offers a spec and a stream of named tensors."""
