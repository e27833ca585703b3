"""Apache Beam: whole-data-set passes that write score tables. The only room that imports Beam."""

import logging

# Importing apache_beam without its Google Cloud extra logs a warning on the root logger, which installs a handler
# there, and then every INFO line of every worker process reaches the terminal. A handler that is there first prevents
# that; errors still reach the driver over Beam's own logging channel.
logging.getLogger().addHandler(logging.NullHandler())
logging.getLogger("apache_beam").setLevel(logging.ERROR)
