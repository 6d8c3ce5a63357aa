"""normbench settles arguments about normalization layers by training small networks and counting."""

__version__ = "0.1.0"
