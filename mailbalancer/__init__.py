"""mailbalancer: a load balancer for mail. See docs/ for the operator's guide."""

__version__ = "0.1.0"
