"""the networks: U-Net, discriminators, CycleGAN. May import config and loop."""
