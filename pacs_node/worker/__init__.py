"""From stored images to predictions, and from frozen answers to stored reports. The role is `service`."""
