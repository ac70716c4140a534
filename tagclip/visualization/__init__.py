"""Pictures: label maps, trusty maps, panels, charts and pages."""
