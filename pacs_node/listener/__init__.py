"""What arrives on the network: admitted, received, filed durably, answered. The role is `service`."""
