use super::*;
use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use streamshield_core::ids::{Epoch, RegionId, StageId};

fn table(options: &[(&str, &str)]) -> TableDefinition {
    let options = options.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    TableDefinition { name: "t".into(), columns: vec![], options, primary_key: vec![] }
}

#[test]
fn every_row_is_taken_and_none_is_kept() {
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
    let rows = RecordBatch::try_from_iter([("a", numbers)]).unwrap();
    let request = SinkRequest { table: table(&[("connector", "blackhole")]), columns: vec![], schema: rows.schema() };
    let region = RegionId { stage: StageId(1), partition: 0 };
    let mut writer = BlackholeConnector.open(request).unwrap().writer(region).unwrap();
    assert!(writer.write(&rows).unwrap().is_empty());
    assert_eq!(writer.bytes(), 0);
    assert!(writer.seal(Epoch(1)).is_none());
}

#[test]
fn every_option_is_refused() {
    assert_eq!(BlackholeConnector.check(&table(&[("connector", "blackhole")])), []);
    let errors = BlackholeConnector.check(&table(&[("connector", "blackhole"), ("depth", "9")]));
    assert_eq!(errors.iter().map(|error| error.key.as_str()).collect::<Vec<_>>(), ["depth"]);
}
