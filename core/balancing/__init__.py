"""The balancer: which backend takes a request, and what happens when it fails."""
