"""A MoLE at the published 160M-4E shape, in both published forms."""
