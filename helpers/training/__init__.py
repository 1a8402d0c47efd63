"""What training uses beside the network: augmentation of batches, and Lightning's callbacks.

They average weights, keep checkpoints and a history, and measure the speed.
"""
