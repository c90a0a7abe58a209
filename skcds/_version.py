"""Version of the package and address of its documentation, in a module that any other can import."""

__version__ = "0.1.0.dev0"
DOCUMENTATION = "https://skcds.readthedocs.io/en/latest/"
