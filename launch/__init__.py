"""`make run`: sets everything up, trains, starts the services, sends a first burst of traffic, stays up."""
