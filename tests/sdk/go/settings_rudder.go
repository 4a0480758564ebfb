package main

import analytics "github.com/rudderlabs/analytics-go/v4"

func apply(config *analytics.Config, gzip bool) {
	config.DataPlaneUrl, config.Endpoint = config.Endpoint, ""
	config.DisableGzip = !gzip
}
