//! I5, watched at the queue: a message may be deleted only when its row no longer holds the path it
//! was sent for, or when the dead-letter queue has it. The auditor sees each delete before it is performed, knows from the receives what it
//! deletes, and asks the database itself.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgPool, PgPoolOptions};

use crate::application::Application;

/// Of no message: with it a consumer tries at its start whether it may delete.
const PROBE_HANDLE: &str = "bucket-brigade-probe";

/// Between two tries while the database is away.
const RETRY_BACKOFF: Duration = Duration::from_millis(50);
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// Looks over the consumers' shoulders.
pub struct DeleteChecker {
    pool: PgPool,
    /// For messages that name no run.
    sql: String,
    id_type: &'static str,
    /// Of each run, by its number.
    run_sql: Mutex<HashMap<i64, String>>,
    records: Mutex<DeleteRecords>,
}

#[derive(Default)]
struct DeleteRecords {
    /// The bodies received, by receipt handle.
    bodies: HashMap<String, String>,
    poison: HashSet<String>,
    /// The bodies that consumers sent to the dead-letter queue.
    dead_letters: HashSet<String>,
    checked_deletes: u64,
    findings: Vec<String>,
}

impl DeleteChecker {
    /// An auditor who asks the application's database directly.
    pub fn new(application: &Application) -> anyhow::Result<Self> {
        let pool = PgPoolOptions::new()
            .max_connections(2)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_lazy(&application.database_url)?;
        let table = &application.table;
        let (id, id_type) = (&table.id_column, table.id_type.sql_name());
        let sql = format!(
            "SELECT {id}::text, {} FROM {} WHERE {id} = ANY ($1::text[]::{id_type}[])",
            table.path_column, table.name
        );
        Ok(Self {
            pool,
            sql,
            id_type,
            run_sql: Mutex::default(),
            records: Mutex::default(),
        })
    }

    /// Called for each message that is not one of ours, before it is sent.
    pub fn expect_poison(&self, body: &str) {
        self.records.lock().poison.insert(body.to_owned());
    }

    pub fn record_received(&self, response: &Value) {
        let mut notes = self.records.lock();
        for message in response["Messages"].as_array().into_iter().flatten() {
            if let (Some(handle), Some(body)) =
                (message["ReceiptHandle"].as_str(), message["Body"].as_str())
            {
                notes.bodies.insert(handle.to_owned(), body.to_owned());
            }
        }
    }

    /// Called for the bodies that the dead-letter queue took from a consumer.
    pub fn record_dead_letters(&self, bodies: Vec<String>) {
        self.records.lock().dead_letters.extend(bodies);
    }

    /// Called for each delete before it is performed, which must wait for the end of this.
    pub async fn check_delete(&self, request: &Value) {
        let batch = request["Entries"].as_array().into_iter().flatten();
        let handles = batch
            .chain(std::iter::once(request))
            .filter_map(|entry| entry["ReceiptHandle"].as_str());
        let mut by_run: BTreeMap<Option<i64>, Vec<(String, String)>> = BTreeMap::new();
        for (run, id, path) in handles.filter_map(|handle| self.find_task(handle)) {
            by_run.entry(run).or_default().push((id, path));
        }
        for (run, asked) in by_run {
            let sql = self.find_sql(run).await;
            let ids = asked.iter().map(|(id, _)| id.as_str()).collect();
            let paths = self.read_paths(&sql, ids).await;
            self.record_deletes(asked, &paths);
        }
    }

    fn record_deletes(&self, asked: Vec<(String, String)>, paths: &BTreeMap<String, String>) {
        let mut notes = self.records.lock();
        for (id, path) in asked {
            notes.checked_deletes += 1;
            if paths.get(&id) == Some(&path) {
                let finding =
                    format!("row {id}: a message was deleted while the row still holds {path:?}");
                notes.findings.push(finding);
            }
        }
    }

    /// The statement that reads the paths of a run's rows.
    async fn find_sql(&self, run: Option<i64>) -> String {
        let Some(run) = run else {
            return self.sql.clone();
        };
        loop {
            if let Some(sql) = self.run_sql.lock().get(&run) {
                return sql.clone();
            }
            let query =
                "SELECT images_table, id_column, path_column FROM bucket_brigade.run WHERE id = $1";
            let found = sqlx::query_as(query).bind(run).fetch_optional(&self.pool);
            let found: sqlx::Result<Option<(String, String, String)>> = found.await;
            match found {
                Ok(Some((table, id, path))) => {
                    let sql = format!(
                        "SELECT {id}::text, {path} FROM {table} WHERE {id} = ANY ($1::text[]::{}[])",
                        self.id_type
                    );
                    self.run_sql.lock().insert(run, sql);
                }
                Ok(None) => return self.sql.clone(),
                Err(_) => tokio::time::sleep(RETRY_BACKOFF).await,
            }
        }
    }

    pub fn checked_deletes(&self) -> u64 {
        self.records.lock().checked_deletes
    }

    pub fn findings(&self) -> Vec<String> {
        self.records.lock().findings.clone()
    }

    /// The run, id and path a message names; it is a finding where there are none.
    fn find_task(&self, handle: &str) -> Option<(Option<i64>, String, String)> {
        if handle == PROBE_HANDLE {
            return None;
        }
        let mut notes = self.records.lock();
        let Some(body) = notes.bodies.get(handle).cloned() else {
            let finding =
                format!("a delete with a receipt handle that was never received: {handle}");
            notes.findings.push(finding);
            return None;
        };
        if notes.dead_letters.contains(&body) {
            notes.checked_deletes += 1;
            return None;
        }
        let task: Value = serde_json::from_str(&body).unwrap_or_default();
        match (task["id"].as_str(), task["path"].as_str()) {
            (Some(id), Some(path)) if !notes.poison.contains(&body) => {
                Some((task["run"].as_i64(), id.to_owned(), path.to_owned()))
            }
            _ => {
                let excerpt: String = body.chars().take(100).collect();
                let finding = format!("a poison message was deleted: {excerpt:?}");
                notes.findings.push(finding);
                None
            }
        }
    }

    async fn read_paths(&self, sql: &str, ids: Vec<&str>) -> BTreeMap<String, String> {
        loop {
            let query = sqlx::query_as(AssertSqlSafe(sql.to_owned())).bind(&ids);
            let found: sqlx::Result<Vec<(String, String)>> = query.fetch_all(&self.pool).await;
            if let Ok(rows) = found {
                return rows.into_iter().collect();
            }
            tokio::time::sleep(RETRY_BACKOFF).await;
        }
    }
}
