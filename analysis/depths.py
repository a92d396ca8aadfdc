"""Where in a network features are taken, and the ways in which its maps are made, by name."""

HEAD = "head input"
DEPTHS = ("1/4", "2/4", "3/4", "4/4", HEAD)
"""Of the stages or blocks that a network has, so that networks of any number of them are comparable."""
GRADIENT, GRAD_CAM, ROLLOUT = "gradient", "grad-cam", "rollout"
METHODS = (GRADIENT, GRAD_CAM, ROLLOUT)
