//! Triggers of the application that refuse, rewrite or delay some rows.

use anyhow::Result;
use sqlx::AssertSqlSafe;

use crate::application::Application;

/// Strikes our updates alone, and the same rows each time.
const TRIGGER: &str = "CREATE FUNCTION chaos_trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF current_setting('application_name') NOT LIKE 'bucket-brigade%' THEN RETURN NEW; END IF;
        CASE abs(hashtext(OLD.{id}::text)) % 60
            WHEN 0 THEN RAISE EXCEPTION 'on legal hold' USING ERRCODE = '42501';
            WHEN 1 THEN RAISE EXCEPTION 'in another state' USING ERRCODE = '55000';
            WHEN 2 THEN RAISE EXCEPTION 'damaged' USING ERRCODE = 'XX001';
            WHEN 3 THEN NEW.{path} := NEW.{path} || '.rewritten';
            WHEN 4 THEN PERFORM pg_sleep(0.3);
            ELSE NULL;
        END CASE;
        RETURN NEW;
    END $$;
    CREATE TRIGGER chaos_trigger BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION chaos_trigger()";

pub(super) async fn create(application: &Application) -> Result<()> {
    let pool = application.connect_pool(1).await?;
    let table = &application.table;
    let sql = TRIGGER
        .replace("{table}", &table.name)
        .replace("{id}", &table.id_column)
        .replace("{path}", &table.path_column);
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&pool).await?;
    Ok(())
}
