"""What the entries of a diffusion decoder's config can be. Imports no torch, as the configs of recipes."""

#: What the chain of a decoder starts from.
STARTS = ("image", "noise")
#: What the network of a decoder predicts.
PREDICTION_TYPES = ("epsilon", "v_prediction", "flow_prediction")
