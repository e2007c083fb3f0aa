"""Traffic for the router: who asks, and how their requests are sent."""
