"""Ray: start or join a cluster, launch the workers, carry their messages to the driver."""
