"""From bytes to batches: published image archives are prepared once, memory-mapped, and batched by a loader of our own.

Nothing here knows of models or of trainings, and nothing uses the loaders or data sets of torch and torchvision.
"""
