"""The running estate: supervisor, journal and control socket; joins kernel, guest and migration."""
