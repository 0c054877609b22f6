"""What comeapi.py plans, starts and watches: backends and a balancer."""
