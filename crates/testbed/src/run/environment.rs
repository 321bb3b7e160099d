//! Everything a run needs: Postgres, S3, SQS, and images to move.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;

use super::output::print_status;
use super::side_runs::{SideRun, seed_side_runs};
use crate::application::{Application, KeySpelling, SEEDED_COMPANIONS};
use crate::checker::{CheckReport, check_invariants};
use crate::cloud::{Cloud, CloudOptions, CreateQueueOptions, QueueDepth, QueueUrls};
use crate::postgres::Cluster;
use crate::process::settings_env;
use crate::seed::{SeedOptions, SeededRowKind, SeededRows, seed_images};
use crate::traffic::{TrafficRates, WriteLog};

/// The application replaces or deletes one in so many images.
const IMAGES_PER_WRITE: usize = 25;

/// What is to be set up.
pub(crate) struct EnvironmentOptions {
    pub(crate) images: u32,
    /// The largest picture, in bytes; none for the seed's own choice.
    pub(crate) largest_bytes: Option<u32>,
    /// Whether some have odd keys, which not every store can hold.
    pub(crate) odd_keys: bool,
    /// Whether some have tags, which not every store knows.
    pub(crate) has_tags: bool,
    /// Seed of the random numbers.
    pub(crate) seed: u64,
    /// Columns to migrate, each a run of its own, with so many images in each.
    pub(crate) columns: u32,
    /// Whether paths are percent-encoded URLs, and images have companions.
    pub(crate) has_companions: bool,
    /// How S3 and SQS behave.
    pub(crate) cloud: CloudOptions,
}

/// How many of `to_do` rows the application may have written once `moved` have moved: its writes are
/// spread over the migration, and the first ones come before it.
pub(crate) fn allowed_writes(to_do: usize, moved: usize) -> usize {
    let most = to_do.div_ceil(IMAGES_PER_WRITE);
    most.min((moved + to_do / 10).div_ceil(IMAGES_PER_WRITE))
}

/// What names a run.
const RUN_SETTINGS: [&str; 7] = [
    "IMAGES_TABLE",
    "ID_COLUMN",
    "PATH_COLUMN",
    "SOURCE_BUCKET_NAME",
    "DESTINATION_BUCKET_NAME",
    "OLD_PREFIX",
    "NEW_PREFIX",
];

fn count_rows(seeded: &SeededRows) -> usize {
    seeded.count_kind(SeededRowKind::ToMove) + seeded.count_kind(SeededRowKind::Missing)
}

pub(crate) struct RunEnvironment {
    pub(crate) application: Application,
    pub(crate) seeded: Arc<SeededRows>,
    /// Further runs, whose images the application only looks after.
    pub(crate) side_runs: Vec<SideRun>,
    pub(crate) cloud: Cloud,
    pub(crate) queue: QueueUrls,
    pub(crate) cluster: Arc<Cluster>,
    seed: u64,
    /// What a program's environment holds besides the usual, by program.
    extra_variables: Vec<(&'static str, &'static str, String)>,
}

impl RunEnvironment {
    pub(crate) async fn set_up(plan: &EnvironmentOptions) -> Result<Self> {
        Self::set_up_on(plan, |application| application).await
    }

    /// The same for an application whose objects are elsewhere.
    pub(crate) async fn set_up_on(
        plan: &EnvironmentOptions,
        adapt: impl FnOnce(Application) -> Application,
    ) -> Result<Self> {
        print_status("Starting a private Postgres, S3 and SQS …");
        let cluster = Arc::new(Cluster::start().await?);
        let database_url = cluster.create_database().await?;
        let cloud = Cloud::start(CloudOptions {
            seed: plan.seed,
            ..plan.cloud.clone()
        })?;
        let queue = cloud
            .create_queue("images", CreateQueueOptions::default())
            .await?;
        let mut application = adapt(Application::new(&cloud, database_url));
        if plan.has_companions {
            application = application.with_url_paths(KeySpelling::Url);
            SEEDED_COMPANIONS.clone_into(&mut application.companions);
        }
        print_status(&format!("Seeding {} images …", plan.images));
        let usual = SeedOptions::new(plan.images as usize);
        let images = SeedOptions {
            seed: plan.seed,
            odd_keys: plan.odd_keys,
            has_tags: plan.has_tags,
            largest_bytes: plan.largest_bytes.unwrap_or(usual.largest_bytes),
            ..usual
        };
        let seeded = Arc::new(seed_images(&application, &images).await?);
        let side_runs = seed_side_runs(&application, &images, plan.columns).await?;
        Ok(Self {
            application,
            seeded,
            side_runs,
            cloud,
            queue,
            cluster,
            seed: plan.seed,
            extra_variables: Vec::new(),
        })
    }

    /// Sets a variable for every process of `program` started from now on.
    pub(crate) fn set_variable(
        &mut self,
        program: &'static str,
        name: &'static str,
        value: String,
    ) {
        self.extra_variables.push((program, name, value));
    }

    /// The rows of all runs that are to move or to fail.
    pub(crate) fn rows_to_process(&self) -> usize {
        let side_runs = self.side_runs.iter().map(|side| count_rows(&side.seeded));
        count_rows(&self.seeded) + side_runs.sum::<usize>()
    }

    /// [`allowed_writes`] for the rows that the application writes.
    pub(crate) fn allowed_writes(&self, moved: usize) -> usize {
        let (all, own) = (self.rows_to_process(), count_rows(&self.seeded));
        allowed_writes(own, moved * own / all.max(1))
    }

    /// Checks every run. The traffic wrote only the first one's rows.
    pub(crate) async fn check_runs(&self, log: &WriteLog) -> Result<CheckReport> {
        let s3 = self.cloud.s3_client_for("checker");
        let checker = self.application.with_s3(s3.clone());
        let mut verdict = check_invariants(&checker, &self.seeded, log).await?;
        for side in &self.side_runs {
            let checker = side.application.with_s3(s3.clone());
            let untouched = WriteLog::default();
            verdict.add(check_invariants(&checker, &side.seeded, &untouched).await?);
        }
        Ok(verdict)
    }

    pub(crate) fn feeder_count(&self) -> usize {
        1 + self.side_runs.len()
    }

    /// The environment of one run's feeder.
    pub(crate) fn feeder_variables(&self, run: usize) -> Vec<(String, String)> {
        let side = run.checked_sub(1).and_then(|at| self.side_runs.get(at));
        let application = side.map_or(&self.application, |side| &side.application);
        self.variables_of(application, "feeder")
    }

    /// The environment of a consumer: where there are several runs it is told none.
    pub(crate) fn consumer_variables(&self) -> Vec<(String, String)> {
        let mut variables = self.variables("consumer");
        if !self.side_runs.is_empty() {
            variables.retain(|(name, _)| !RUN_SETTINGS.contains(&name.as_str()));
        }
        variables
    }

    pub(crate) fn traffic_rates(&self) -> TrafficRates {
        let most_writes = self.allowed_writes(0);
        TrafficRates {
            writes_per_second: 200.0,
            max_writes: most_writes,
            seed: self.seed,
            ..TrafficRates::default()
        }
    }

    pub(crate) fn variables(&self, program: &str) -> Vec<(String, String)> {
        self.variables_of(&self.application, program)
    }

    fn variables_of(&self, application: &Application, program: &str) -> Vec<(String, String)> {
        let usual = settings_env(application, &self.cloud, &self.queue.url, program);
        let special = self
            .extra_variables
            .iter()
            .filter(|(of, ..)| *of == program);
        let special = special.map(|(_, name, value)| ((*name).to_owned(), value.clone()));
        // The last one of a name counts.
        usual.into_iter().chain(special).collect()
    }

    pub(crate) fn log_path(&self, name: &str) -> PathBuf {
        self.cluster.directory().join(format!("{name}.log"))
    }

    pub(crate) async fn queue_depth(&self) -> Result<QueueDepth> {
        self.cloud.queue_depth(&self.queue.url).await
    }

    pub(crate) async fn dead_letters(&self) -> Result<u64> {
        match &self.queue.dead_letter_url {
            Some(url) => Ok(self.cloud.queue_depth(url).await?.total()),
            None => Ok(0),
        }
    }

    /// Leaves everything running until Ctrl-C.
    pub(crate) async fn keep_running(&self) {
        print_status("\nEverything is left running. To use it from another terminal:\n");
        for (name, value) in self.variables("test") {
            print_status(&format!("export {name}='{value}'"));
        }
        if let Some(url) = &self.queue.dead_letter_url {
            print_status(&format!("export DEAD_LETTER_QUEUE_URL='{url}'"));
        }
        print_status(&format!(
            "\nLogs are in {}. Ctrl-C ends it all.",
            self.cluster.directory().display()
        ));
        std::future::pending::<()>().await;
    }
}
