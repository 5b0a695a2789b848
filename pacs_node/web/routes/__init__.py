"""One module per subject. Each router carries its whole path, so that a log line shows the template as it is called."""

API = "/api/v1"
