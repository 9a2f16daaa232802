// Runs dcmjs' dicomweb-client against a server and prints what it got as JSON.
// Arguments: folder with node_modules, address of the service, UIDs of study, series and instance, and a file to store before anything is asked for.
const [modules, url, study, series, instance, file] = process.argv.slice(2);
const { createRequire } = require("module");
const load = createRequire(`${modules}/`);
const crypto = require("crypto");

// The client is written for browsers: this is the part of XMLHttpRequest that it uses.
globalThis.XMLHttpRequest = class {
  headers = {};
  open(method, address) { Object.assign(this, { method, address }); }
  setRequestHeader(name, value) { this.headers[name] = value; }
  getResponseHeader(name) { return this.answer.headers.get(name); }
  getAllResponseHeaders() { return [...this.answer.headers].map(([name, value]) => `${name}: ${value}\r\n`).join(""); }
  async send(body) {
    this.answer = await fetch(this.address, { method: this.method, headers: this.headers, body });
    this.status = this.answer.status;
    this.statusText = this.answer.statusText;
    const data = await this.answer.arrayBuffer();
    const json = (this.answer.headers.get("content-type") || "").includes("json");
    this.response = this.responseType === "json" || json ? (data.byteLength ? JSON.parse(Buffer.from(data)) : "") : data;
    this.readyState = 4;
    this.onreadystatechange?.({});
    this.onload?.({});
  }
};
globalThis.window ??= globalThis;

const { api } = load("dicomweb-client");
const dcmjs = load("dcmjs");
dcmjs.log?.setLevel?.("error");
const hash = (data) => crypto.createHash("sha256").update(Buffer.from(data)).digest("hex");
const keys = { studyInstanceUID: study, seriesInstanceUID: series, sopInstanceUID: instance };
const uid = (rows, tag) => rows.map((row) => row[tag].Value[0]);

(async () => {
  const client = new api.DICOMwebClient({ url, singlepart: "" });
  const found = {};
  if (file) {
    const data = Uint8Array.from(require("fs").readFileSync(file)).buffer;
    const answer = await client.storeInstances({ datasets: [data] });
    found.stored = uid((typeof answer === "string" ? JSON.parse(answer) : answer)["00081199"].Value, "00081155");
  }
  found.studies = uid(await client.searchForStudies({ queryParams: { StudyInstanceUID: study } }), "0020000D");
  found.series = uid(await client.searchForSeries({ studyInstanceUID: study }), "0020000E");
  found.instances = uid(await client.searchForInstances({ studyInstanceUID: study, seriesInstanceUID: series }), "00080018");
  const metadata = await client.retrieveSeriesMetadata(keys);
  found.metadata = metadata.length;
  found.naturalized = dcmjs.data.DicomMetaDictionary.naturalizeDataset(metadata[0]).SOPInstanceUID;
  found.studyMetadata = (await client.retrieveStudyMetadata(keys)).length;
  found.instanceMetadata = (await client.retrieveInstanceMetadata(keys))["00080018"]?.Value[0] ?? (await client.retrieveInstanceMetadata(keys))[0]["00080018"].Value[0];
  const part10 = await client.retrieveInstance(keys);
  const read = dcmjs.data.DicomMessage.readFile(part10);
  found.patient = read.dict["00100020"].Value[0];
  found.pixels = hash(read.dict["7FE00010"].Value[0]);
  found.wholeSeries = (await client.retrieveSeries(keys)).length;
  found.wholeStudy = (await client.retrieveStudy(keys)).length;
  found.frames = (await client.retrieveInstanceFrames({ ...keys, frameNumbers: [1] })).map(hash);
  const bulk = await client.retrieveBulkData({ BulkDataURI: metadata[0]["7FE00010"].BulkDataURI });
  found.bulk = bulk.map(hash);
  const [picture] = await client.retrieveInstanceRendered({ ...keys, mediaTypes: [{ mediaType: "image/png" }] });
  found.rendered = Buffer.from(picture).subarray(1, 4).toString();
  console.log(JSON.stringify(found));
})().catch((error) => { console.error(error); process.exit(1); });
