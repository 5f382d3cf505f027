"""`python -m mailbalancer` is `mailbalancer`."""

from mailbalancer.cli import main

if __name__ == "__main__":
    main()
