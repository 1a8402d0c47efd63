"""The data: files in, batches out. Ground truths, log-mel files, samplers, a folder per data set.

In a checkout this folder shadows the Hugging Face package of the same name.
"""

if __name__ == "datasets":  # imported by its older name, in a checkout
    from maest.checkout import alias

    alias(__name__)
