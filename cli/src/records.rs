//! What a run leaves to be read afterwards: the log, the timeline, the metrics, each where it was asked for.

use std::sync::Arc;

use ampoule_vmm::VmHandle;

use crate::args::RunConfig;
use crate::logger;
use crate::metrics::MetricsSink;
use crate::report::Failure;
use crate::timeline::TimelineSink;

/// Where they go, open since before the VM was built.
pub(crate) struct Records {
    timeline: Option<TimelineSink>,
    metrics: Option<Arc<MetricsSink>>,
}

impl Records {
    /// Opens what the configuration names, and begins the log.
    pub(crate) fn open(config: &RunConfig) -> Result<Self, Failure> {
        logger::install(config.log_level, config.log_file.as_deref())?;
        let timeline = config.timeline.as_deref().map(TimelineSink::open);
        let metrics = config.metrics.as_deref().map(MetricsSink::open);
        Ok(Self {
            timeline: timeline.transpose()?,
            metrics: metrics.transpose()?.map(Arc::new),
        })
    }

    /// Where metrics go, for those who write them during the run.
    pub(crate) fn metrics(&self) -> Option<Arc<MetricsSink>> {
        self.metrics.clone()
    }

    /// Writes what there is to say of a VM that has ended, in these words and with this exit code.
    pub(crate) fn write(self, vm: &VmHandle, outcome: &str, code: u8) -> Result<(), Failure> {
        if let Some(metrics) = self.metrics {
            metrics.write_ended(&vm.metrics(), outcome, code)?;
        }
        if let Some(timeline) = self.timeline {
            timeline.write(vm.timeline(), outcome, code)?;
        }
        Ok(())
    }
}
