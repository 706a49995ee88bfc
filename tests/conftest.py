"""What holds for every test, however few are run."""

# Its HDF5 must be loaded before the older one that DOLFINx brings, which h5py would take for its own.
import h5py  # noqa: F401
