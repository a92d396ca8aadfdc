"""From bytes to batches: published image archives are prepared once, memory-mapped, and batched by a loader of our own.

Nothing here knows of models or of trainings, and nothing uses `torch.utils.data` or torchvision's data sets.
"""
