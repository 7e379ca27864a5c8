"""The documented facts: what a run on the documented images is set beside.

Source: "Real vs. Fake Faces Image Classification", Statistical Deep Learning, Fall 2023.
"""

__all__ = ["ACCURACY", "EPOCH_SECS", "HISTORY", "NUM_ERRORS", "NUM_TEST"]

ACCURACY = 0.9961
NUM_ERRORS = 1
NUM_TEST = 258

HISTORY = {
    "loss": (0.6539, 0.1378, 0.1042, 0.1105, 0.1007, 0.0702, 0.0316, 0.0275, 0.0216, 0.0200),
    "accuracy": (0.8070, 0.9564, 0.9622, 0.9612, 0.9593, 0.9777, 0.9913, 0.9913, 0.9942, 0.9971),
    "val_loss": (0.2441, 0.2083, 0.1715, 0.1186, 0.1432, 0.0871, 0.0591, 0.0530, 0.0554, 0.0364),
    "val_accuracy": (0.9845, 0.9457, 0.9767, 0.9922, 0.9922, 0.9922, 0.9922, 0.9961, 0.9961, 0.9961),
}
EPOCH_SECS = (210, 203, 196, 210, 205, 195, 211, 195, 205, 205)
