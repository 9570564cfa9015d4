"""The original `llava` package with our towers: `python -m sfvlm.llava_package MODULE ...`; see `sfvlm.hosts.llava.package`."""

from .hosts.llava.package import main, register, unregister

__all__ = ["main", "register", "unregister"]

if __name__ == "__main__":
    main()
