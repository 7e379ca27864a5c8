"""Running trainings: the driver and its subclass for trials, engines and workers, and uploads."""
