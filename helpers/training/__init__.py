"""What training uses beside the network: augmentation, averaging, checkpoints, its history.

Lightning's callbacks live here, and the measure of throughput.
"""
