"""The parts of the front door, `dutiful.worker.Worker`."""
