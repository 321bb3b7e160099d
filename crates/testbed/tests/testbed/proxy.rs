//! The proxy cuts connections, and the effect is there or not as it says.

use anyhow::Result;
use bucket_brigade_testbed::postgres::Cluster;
use bucket_brigade_testbed::proxy::{CutRates, PostgresProxy};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// A statement that writes the ledger, in the proxy's eyes.
const COMMIT_SQL: &str = "WITH moved AS (UPDATE moves SET n = n + $1 RETURNING n)
    INSERT INTO bucket_brigade.counters SELECT n FROM moved";

struct ProxyFixture {
    direct: PgConnection,
    proxy: PostgresProxy,
    url: String,
}

impl ProxyFixture {
    async fn new(after: f64, before: f64) -> Result<Self> {
        let cluster = Cluster::shared().await;
        let url = cluster.create_database().await?;
        let mut direct = PgConnection::connect(&url).await?;
        let sql = "CREATE SCHEMA bucket_brigade; CREATE TABLE bucket_brigade.counters (n int);
            CREATE TABLE moves (n int); INSERT INTO moves VALUES (0)";
        sqlx::raw_sql(sql).execute(&mut direct).await?;
        let cuts = CutRates {
            after,
            before,
            seed: 1,
        };
        let proxy = PostgresProxy::start(cluster.port(), cuts).await?;
        let (port, through) = (cluster.port(), proxy.port());
        let url = url.replace(&format!(":{port}/"), &format!(":{through}/"));
        Ok(Self { direct, proxy, url })
    }

    /// Commits through the proxy; whether the answer came.
    async fn commit(&self) -> Result<bool> {
        let mut connection = PgConnection::connect(&self.url).await?;
        let query = sqlx::query(AssertSqlSafe(COMMIT_SQL)).bind(1);
        Ok(query.execute(&mut connection).await.is_ok())
    }

    /// How often the statement was carried out.
    async fn effects(&mut self) -> Result<i64> {
        let count = "SELECT count(*) FROM bucket_brigade.counters";
        Ok(sqlx::query_scalar(count)
            .fetch_one(&mut self.direct)
            .await?)
    }
}

#[tokio::test]
async fn a_commit_is_carried_out_and_its_answer_lost() -> Result<()> {
    let mut bench = ProxyFixture::new(1.0, 0.0).await?;
    assert!(!bench.commit().await?);
    assert_eq!(
        (bench.effects().await?, bench.proxy.cut_counts()),
        (1, (0, 1))
    );
    Ok(())
}

#[tokio::test]
async fn a_commit_never_reaches_the_server() -> Result<()> {
    let mut bench = ProxyFixture::new(0.0, 1.0).await?;
    assert!(!bench.commit().await?);
    assert_eq!(
        (bench.effects().await?, bench.proxy.cut_counts()),
        (0, (1, 0))
    );
    Ok(())
}

#[tokio::test]
async fn everything_else_passes() -> Result<()> {
    let mut bench = ProxyFixture::new(1.0, 0.0).await?;
    let mut connection = PgConnection::connect(&bench.url).await?;
    let sum = "SELECT n + $1 FROM moves";
    for number in 0..3 {
        let query = sqlx::query_scalar(sum).bind(number);
        let answer: i32 = query.fetch_one(&mut connection).await?;
        assert_eq!(answer, number);
    }
    bench.proxy.stop_cutting();
    assert!(bench.commit().await?);
    assert_eq!(
        (bench.effects().await?, bench.proxy.cut_counts()),
        (1, (0, 0))
    );
    Ok(())
}
