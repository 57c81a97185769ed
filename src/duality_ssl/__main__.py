"""``python -m duality_ssl`` is the command ``duality-ssl``."""

from duality_ssl.cli import main

if __name__ == "__main__":
    main()
